"""What all tests share: the signals that their programs are sent are not ignored, wherever pytest was started from."""

import signal

# A shell ignores them for what it starts in the background, and every program started from there would do so too.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)
