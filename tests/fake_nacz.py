"""The command line with the order-0 predictor in place of the real ones, to be run in a process of its own."""

from __future__ import annotations

import itertools
import os
import sys
import time

import order0

from nacz import cli

order0.install()
if os.environ.get("ORDER0_MISSING"):
    order0.Order0ModelCoder.missing = True
if os.environ.get("ORDER0_OTHER"):
    order0.Order0ModelCoder.identity = order0.ModelIdentity("other", b"othr")
if os.environ.get("ORDER0_BROKEN"):
    order0.Order0Coder.encode = lambda *a, **k: 1 // 0  # type: ignore[assignment]
if os.environ.get("ORDER0_SLOW"):
    fast = order0.cdf_from_weights

    calls = itertools.count()

    def slow(*arguments: object) -> None:
        time.sleep(0.01)
        fast(*arguments)
        if next(calls) == 3:
            open(os.environ["ORDER0_SLOW"], "wb").close()

    order0.cdf_from_weights = slow  # type: ignore[assignment]

sys.exit(cli.main())
