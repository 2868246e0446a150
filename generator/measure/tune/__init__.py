"""Which settings serve a model best on this machine: successive halving over fields of the spec, measured for real.

knobs.find_knobs        the fields that may change, each with the values worth trying
trial                   one measurement, and what makes one better than another
journal.Journal         every measurement, on disk as soon as it is there
served.Candidates       a copy of the repository with other configurations, served and measured with perf_analyzer
search.Search           short measurements for all, longer ones for the better half; the winner beside the spec as it is
spec_file               the chosen fields written into a copy of the spec
report                  the table of what was tried, and tune.json
"""
