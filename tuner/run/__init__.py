"""One seed's run, and several: from options to a result, through interruptions."""
