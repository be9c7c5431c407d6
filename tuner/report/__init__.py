"""Looking at runs: plots of one, a table and a page of several, and what a prompt's vectors lie near."""
