"""A web site with Jinja2: templates that inherit from one another are compiled once,
and every page is joined from thousands of short strings."""

import replay

replay.mark("import")
from jinja2 import DictLoader, Environment

BASE = """<html><head><title>{% block title %}{% endblock %}</title></head><body>
<nav>{% for link in links %}<a href="/{{ link|urlencode }}">{{ link|title }}</a>{% endfor %}</nav>
{% block content %}{% endblock %}<footer>{{ site }}</footer></body></html>"""
LIST = """{% extends "base" %}{% macro price(cents) %}{{ "%.2f"|format(cents / 100) }} €{% endmacro %}
{% block title %}{{ shelf|upper }}{% endblock %}{% block content %}<table>
{% for item in items|sort(attribute="cents") %}<tr class="{{ loop.cycle('odd', 'even') }}"><td>{{ loop.index }}</td>
<td>{{ item.name }}</td><td>{{ price(item.cents) }}</td>
<td>{% if item.note %}{{ item.note|truncate(30) }}{% else %}–{% endif %}</td></tr>{% endfor %}</table>{% endblock %}"""

replay.mark("warm-up")
site = Environment(loader=DictLoader({"base": BASE, "list": LIST}), autoescape=True)
page = site.get_template("list")

replay.mark("work")
cache = {}
for number in range(10):
    items = [
        {"name": f"item <{number * each}>", "cents": number * 7919 * each % 9999, "note": "worth a look " * (each % 4)}
        for each in range(number * 5 + 5)
    ]
    links = ("new", "on sale", "about us")
    cache[number % 5] = page.render(shelf=f"shelf {number}", items=items, links=links, site="A shop & more")
