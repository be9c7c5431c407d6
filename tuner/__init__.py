"""The search: tasks, objectives, projections, BBT, BBTv2, runs, command line."""
