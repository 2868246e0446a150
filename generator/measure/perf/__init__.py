"""How fast the served models are: perf_analyzer found or installed, fed with real JPEGs, run and read back.

served.read_models      what the server has: the ensemble and its members
images.collect_images   JPEGs of mixed sizes -> perf_analyzer's input file
analyzer                perf_analyzer itself: find, install, the libraries that it needs
sweep.measure           one run per model and concurrency -> Measurement
gpu.MetricsWatch        what the server's GPUs did meanwhile, from its metrics page
measurement             its CSV files read
output                  our table, perf.csv and perf.json
"""
