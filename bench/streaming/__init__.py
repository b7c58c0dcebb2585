"""Labels for an image file of any size: read, worked on and written by windows.

    from bench.streaming import job, predict_file
    predict_file(Path("city.tif"), Path("labels.tif"), job("glnet-collaborative"))

command.py        `glnet-bench predict`
predict_file.py   from an image file to a label file; resumed where it was killed
job.py            a run of a suite, its weights, and what labels mean
budget.py         what it takes, and what fits
raster.py         PNG, JPEG and TIFF by windows, through GDAL
image.py          an image on the disk, as strategies see it (`bench.tiling.Large`)
canvas.py         sums of scores that become labels on the way
planes.py         arrays in files
partial.py        what is done of an image that is not done yet
growth.py         seconds and memory against the size of an image, measured

Not to be mixed up with the stage `predict`, which works out memory on fake tensors, nor with a
strategy's `predict`, which has the image in memory and is what the suite measures."""

from bench.streaming.job import Job, job
from bench.streaming.predict_file import Done, predict_file

__all__ = ["Done", "Job", "job", "predict_file"]
