"""SDXL in JAX: training, sampling and conversion."""

import signal
import sys

# A command imports libraries for seconds before cli.run can act on Ctrl-C. Till
# then it ends the process at once, without a traceback out of some library.
# While Python looks for the module of -m, the first argument is '-m'.
if sys.argv[:1] == ['-m']:
  if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
