"""Subjects and observers that refer to each other; most are short-lived, some live for thousands of others."""

import stage

stage.reach("begin")


class Subject:
    def __init__(self, number):
        self.name = f"subject {number}"
        self.observers = [Observer(self, index) for index in range(3)]


class Observer:
    def __init__(self, subject, index):
        self.subject, self.index = subject, index
        self.notify = self.on_change

    def on_change(self):
        return self.index


old, young = {}, {}
stage.reach("started")
for number in range(50_000):
    subject = Subject(number)
    young[number % 50] = subject
    if number % 8 == 0:
        old[number // 8 % 1_500] = subject
stage.reach("end")
