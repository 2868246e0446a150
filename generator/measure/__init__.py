"""What measures and explains a model: bench, perf, inspect, tune. Nothing else imports it."""
