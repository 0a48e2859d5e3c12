"""Sets a process's clock back by two days once a file is there, as a correction from the network does at any moment."""

import os
import time

_true = time.time
time.time = lambda: _true() - (2 * 86_400 if os.path.exists(os.environ["CLOCK_GOES_BACK_WITH"]) else 0)
