"""What the benchmarks share: shapes, workloads, contenders, and the processes they run in."""
