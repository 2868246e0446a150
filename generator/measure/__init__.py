"""What measures and explains a model: bench, perf, inspect. Nothing else imports it."""
