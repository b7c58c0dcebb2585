"""Stage `report`: the records of the active suite -> tables, figures and a site that opens from
disk.

gather.py    which records there are            table.py     one line a run, one line of IoU a run
ablation.py  what one setting changes           timing.py    latency
paper.py     predicted beside published memory  pareto.py    who is dominated
verdict.py   published, ours, and a verdict     bootstrap.py  how far a result would move
style.py     colours, markers, units            words.py     what the numbers say, in words
figures/     static and interactive figures, thumbnails and pages of test scenes
chapter.py   what is shown of one data set      page.py      tables as pages show them
run_page.py, memory_page.py, overview.py: the other pages
site.py      fills templates/, copies assets/ and vendor/
"""
