"""The page of a study, for `page.py` to fill. It holds everything itself: no script, no network, no file."""

STYLE = """\
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1200px; padding: 28px 24px 60px; background: #f6f7f9; color: #1d2330;
  font: 15px/1.5 system-ui, sans-serif; }
h1 { margin: 0 0 2px; font-size: 27px; }
h2 { margin: 40px 0 10px; font-size: 20px; }
p { margin: 6px 0; max-width: 75em; }
code { font: 13px ui-monospace, monospace; overflow-wrap: anywhere; }
.quiet { color: #596377; }
.card { padding: 14px 16px; border: 1px solid #e1e5ec; border-radius: 8px; background: #fff; }
.wide { overflow-x: auto; }
.aims { display: grid; gap: 8px; }
.aim { display: grid; grid-template-columns: 132px 1fr; gap: 2px 14px; }
.aim p { margin: 0; max-width: none; }
.verdict { align-self: start; padding: 1px 10px; border-radius: 10px; text-align: center; font-weight: 600;
  font-size: 13px; border: 1px solid; white-space: nowrap; }
.met { color: #0b5a8a; border-color: #0b5a8a; background: #e8f3fa; }
.not-met { color: #9a3d00; border-color: #9a3d00; background: #fdf0e6; border-style: dashed; }
.unknown { color: #596377; border-color: #b8c0cc; background: #f2f4f7; border-style: dotted; }
.name { font-weight: 600; }
table { border-collapse: collapse; width: 100%; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 6px; text-align: right; vertical-align: top; border-bottom: 1px solid #eceff3; }
th:first-child, td:first-child { text-align: left; min-width: 128px; }
thead th { font-weight: 600; color: #475467; vertical-align: bottom; border-bottom: 1px solid #c4cad4; }
thead .group th { text-align: center; border-bottom: 0; padding-bottom: 0; color: #1d2330; }
tbody tr:last-child td { border-bottom: 0; }
td small { display: block; color: #596377; font-size: 11px; line-height: 1.1; white-space: nowrap; }
.edge { border-left: 1px solid #dde2ea; }
.paper { background: #f7f3ea; color: #5c4a16; }
svg { display: block; width: 100%; height: auto; }
figure { margin: 0 0 14px; }
figcaption { margin-bottom: 8px; color: #344054; }
details { margin-top: 8px; }
summary { cursor: pointer; font-weight: 600; }
pre { margin: 8px 0 0; font: 12.5px/1.45 ui-monospace, monospace; white-space: pre-wrap; }
"""

PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
{{ style|safe }}</style>
</head>
<body>
<h1>{{ title }}</h1>
<p class="quiet">{{ study.date }} · commit {{ study.commits|join(", ") or "unknown" }} ·
<code>{{ study.command }}</code>
· <strong>{{ study.cells_done }} of {{ study.cells_total }}</strong> cells are done</p>
<p>{{ setting }}</p>

<h2>What the paper found, and what this study finds</h2>
<div class="aims">
{% for aim in aims %}
<div class="card aim">
<span class="verdict {{ verdict_class[aim.verdict] }}">{{ aim.verdict }}</span>
<div>
<p class="name">{{ aim.aim }}.</p>
<p>Here: {{ aim.ours }}.</p>
<p class="quiet">The paper: {{ aim.paper }}.</p>
</div>
</div>
{% endfor %}
</div>

{% macro show_table(table) %}
<h2>{{ table.title }}</h2>
<p class="quiet">{{ table.note }}</p>
<div class="card wide">
<table>
<thead>
<tr class="group"><th></th>
{% for group, columns in table.groups %}
<th colspan="{{ columns|length }}" class="edge{{ " paper" if paper in group }}">{{ group }}</th>
{% endfor %}
</tr>
<tr><th>arm</th>
{% for group, columns in table.groups %}
{% for column in columns %}
<th class="{{ "edge" if loop.first }}{{ " paper" if paper in group }}">{{ column }}</th>
{% endfor %}
{% endfor %}
</tr>
</thead>
<tbody>
{% for name, groups in table.rows %}
<tr><td class="name">{{ name }}</td>
{% for values in groups %}
{% set is_paper = paper in table.groups[loop.index0][0] %}
{% for mean, error in values %}
<td class="{{ "edge" if loop.first }}{{ " paper" if is_paper }}">{{ mean }}\
{% if error %}<small>± {{ error }}</small>{% endif %}</td>
{% endfor %}
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table>
</div>
{% endmacro %}
{{ show_table(tables[0]) }}

<h2>Charts</h2>
{% for caption, svg in charts %}
<figure class="card">
<figcaption>{{ caption }}</figcaption>
{{ svg|safe }}
</figure>
{% endfor %}

{% for table in tables[1:] %}
{{ show_table(table) }}
{% endfor %}

<h2>Every seed</h2>
{% for arm in seeds %}
<details class="card">
<summary>{{ arm.name }}</summary>
<div class="wide">
<table>
<thead><tr><th>number</th>{% for seed in arm.seeds %}<th>seed {{ seed }}</th>{% endfor %}<th>mean</th>\
<th>standard error</th></tr></thead>
<tbody>
{% for name, values in arm.rows %}
<tr><td>{{ name }}</td>{% for value in values %}<td>{{ value }}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
</div>
</details>
{% else %}
<p>No cell is complete yet.</p>
{% endfor %}

<h2>The study file</h2>
<details class="card"><summary>as it was run, every setting</summary><pre>{{ study_file }}</pre></details>
</body>
</html>
"""
