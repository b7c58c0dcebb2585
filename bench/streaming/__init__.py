"""Labels for image files of any size, which are read, processed and written by windows.

    from bench.streaming import open_job, predict_file
    predict_file(Path("city.tif"), Path("labels.tif"), open_job("glnet-collaborative"))

predict_file.py   from an image file to a label file; resumes an interrupted process
job.py            a run of a suite with its weights and classes
budget.py         predicted memory, and settings that fit a limit
raster.py         image files to planes, planes to label files
bands.py          bands of one image, labelled by several processes
image.py          an image on disk, as strategies receive it (`bench.tiling.Large`)
planes.py         arrays in files
partial.py        state of an unfinished image, for resuming

`glnet-bench predict` uses this package and `bench.experiments.growth` measures it. It is unrelated to
the stage `predict`, which predicts memory on fake tensors."""

from bench.streaming.bands import Spread, label_band
from bench.streaming.job import Job, open_job
from bench.streaming.predict_file import FilePrediction, predict_file

__all__ = ["FilePrediction", "Job", "Spread", "label_band", "open_job", "predict_file"]
