"""Tasks of asyncio that fail and keep their exceptions."""

import stage

stage.reach("begin")

import asyncio  # noqa: E402 — the setting applies from the start


async def step(number):
    await asyncio.sleep(0)
    if number % 3 == 0:
        raise ValueError(number)
    return [number] * 5


async def request(number):
    local = {"number": number, "data": bytes(600)}
    try:
        await step(number)
    except ValueError as error:
        local["error"] = error
        local["self"] = local
    return number


async def main():
    stage.reach("started")
    for start in range(0, 20_000, 50):
        await asyncio.gather(*(request(number) for number in range(start, start + 50)))


asyncio.run(main())
stage.reach("end")
