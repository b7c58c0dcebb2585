"""What is known of the authors' codes: golden data, parity checks, released checkpoints.

    golden.py         reads a folder of golden data; its errors name the file
    check.py          one comparison, and the collector of those of a case
    formulas.py       weights, images and labels that golden data is made of
    replay.py         builds a network, takes down its calls, runs one training step
    glnet.py, ...     what one method contributes: see `check.Method`
    keys.py           our state-dict keys -> the released ones
    checkpoint_io.py  reads and writes released checkpoints

`python -m reference FOLDER` finds the method of a folder and compares everything in it. A new
method is one module with a `METHOD`, and its name in `reference.__main__.METHODS`."""
