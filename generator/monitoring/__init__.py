"""What watches a server: Prometheus rules with their unit tests, a Grafana dashboard, how to scrape.

Made of what the repository knows: its models, which of them are ensembles, how long requests may wait in front of each.

    watched.find_watched(root)      the models and the waits, from their config.pbtxt
    queries.Queries                 PromQL, which rules and dashboard share
    rules.make_alerts               the alerts, each with its threshold of `Limits`
    cases.make_unit_tests           series for promtool that make each alert fire, and series that come close
    files.make_files                everything as text
"""
