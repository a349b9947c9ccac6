"""An example as one of several processes: ``python run_example.py EXAMPLE``.

It leaves through os._exit: gloo sometimes aborts while the interpreter shuts down, after everything is done.
"""

import os
import runpy
import sys

if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
    sys.stdout.flush()
    os._exit(0)
