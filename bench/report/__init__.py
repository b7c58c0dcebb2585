"""Stage `report`: the records of a suite -> tables, metrics, figures, and a site that opens from
disk.

load_records.py  which records there are        section.py     a table, its figures and findings
evaluations.py   mIoU, front, groups of seeds   sections.yaml  headings, captions and sentences
bootstrap.py     intervals and differences      figures/       static and interactive figures
findings.py      what the numbers say           pages.py       every page, as a list of sections
runs.py, memory.py, published.py  the tables    site.py        fills templates/, copies assets/
"""
