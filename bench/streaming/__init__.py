"""Labels for an image file of any size: it is read, processed and written by windows.

    from bench.streaming import job, predict_file
    predict_file(Path("city.tif"), Path("labels.tif"), job("glnet-collaborative"))

predict_file.py   from an image file to a label file; resumes an interrupted process
job.py            a run of a suite, its weights, and the classes
budget.py         predicted memory, and settings that fit a limit
raster.py         image files to planes, planes to label files
image.py          an image on the disk, as strategies receive it (`bench.tiling.Large`)
score_sums.py     sums of scores that become labels row by row
planes.py         arrays in files
partial.py        the finished parts of an unfinished image

`glnet-bench predict` uses it; `bench.experiments.growth` measures it. The stage `predict` is
something else: it predicts memory on fake tensors."""

from bench.streaming.job import Job, job
from bench.streaming.predict_file import FilePrediction, predict_file

__all__ = ["FilePrediction", "Job", "job", "predict_file"]
