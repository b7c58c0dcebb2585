"""The active suite on many machines: Ray or Slurm run the stages that `dvc repro` would run.

start.py      the command, from the first stage to the last
plan.py       what has to run, from DVC's own graph
head.py       submits what is ready, takes over what has ended well
stages.py     what the head does for stages
label.py      images, or bands of one, as tasks: for `glnet-bench predict`
engines.py    Ray, and Slurm through submitit
worker.py     on a worker: unpacks the commit and starts task.py in it
task.py       in that checkout: runs `work` of label.py or stage.py
stage.py      pulls inputs, runs the stage's own command, pushes outputs
simulate.py   how long a plan takes on how many workers
"""
