"""Exceptions that keep their frames, as of a service that remembers its last error."""

import stage

stage.reach("begin")


class Failure(Exception):
    pass


def work(number):
    payload = bytes(900 + number % 400)
    try:
        raise Failure
    except Failure as error:
        caught = error
    return number, payload, caught is None


texts = [str(number) * 30 for number in range(200_000)]
stage.reach("started")
for number in range(50_000):
    work(number)
stage.reach("end")
