"""Allocates while `saying` imports it."""
# fmt: off

import saying
from saying import here, say, take

take(say(here()))


class Body:
    take(say(here()))

    class Inner:
        take(say(here()))


saying.plain()
