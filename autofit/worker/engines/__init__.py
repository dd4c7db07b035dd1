"""Training loops, one module each: `run(order, report, heartbeat)` trains as ordered and fills the report."""
