"""What every proof of equality with a released code needs: comparisons and their table (`check`),
golden files (`golden`), and images and labels that formulas make (`formulas`).

A method package that can be compared has a package `parity` with

    fits(folder) -> bool             whether the folder's golden data is of this method
    compare(folder) -> list[Check]   all comparisons of all its cases

and `python -m reference.__main__ FOLDER` finds the one that fits."""
