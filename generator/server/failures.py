from generator.errors import ServerError


def is_port_conflict(t):
    return False


def explain_end(code, log, *, log_path, ready):
    return ServerError(f"code {code}", log_tail=log.splitlines())


def explain_timeout(log, *, log_path, timeout_s):
    return ServerError("timeout", log_tail=log.splitlines())
