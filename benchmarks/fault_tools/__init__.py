"""What the fault campaign is made of: a metered engine, a cluster of several nodes, faults, and an audit."""
