# the export of both networks
