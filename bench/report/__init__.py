"""Stage `report`: the records of the active suite -> tables, figures and one self-contained page.

gather.py    which records there are            table.py    one line a run, one line of IoU a run
paper.py     predicted beside published memory  pareto.py   who is dominated
verdict.py   published, ours, and a verdict
style.py     colours, markers, units            labels.py   labels that do not overlap
tradeoff.py  accuracy against memory            figures.py  the other figures, and their files
panels.py    pictures of test scenes, for print   words.py    what the numbers say, in words
viewer.py    pages of test scenes              layers.py   their pictures and tiles
page.py      index.html out of page.html.j2
"""
