"""Reports on runs: plots of one run, a table and a page of several, and the tokens near a prompt's vectors."""
