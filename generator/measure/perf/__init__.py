"""How fast the served models are: perf_analyzer found or installed, fed with real JPEGs, run and read back.

served.read_models      what the server has: the ensemble and its members
images.collect_images   JPEGs of mixed sizes -> perf_analyzer's input file
analyzer                perf_analyzer itself: find, install, the libraries that it needs
sweep.measure           one run per model and load -> Measurement
gpu.MetricsWatch        what the server's GPUs and cores did meanwhile, from its metrics page
busy.StatisticsWatch    how busy the instances of each model were, from its statistics
measurement             its CSV files read
verdict.judge           what limits the model, the change to try and what it should bring
check.try_change        that change made in a copy, served and measured
compare                 a run beside an earlier one
output                  our table, perf.csv and perf.json
report, plot            all of them together, and perf.html
"""
