// The heap map: regions of memory as rows of cells on a canvas, over the moments of a run.
//
// map-meta (JSON) has the regions and moments; map-data (base64 of gzip) the columns of all changes, one after the
// other. A column of n values of b bytes is stored as b planes of n bytes, which gzip packs better. The first column has
// the numbers of the changed cells, ascending within a moment, each as the difference to the one before.
"use strict";

const heapMap = (() => {
  const HIGHEST = 560, GAP = 2, HEADING = 26, GUTTER = 122, NOTHING = 65535;
  const byId = (id) => document.getElementById(id);
  const meta = JSON.parse(byId("map-meta").textContent);
  const view = byId("map-view"), canvas = byId("map-canvas"), overlay = byId("map-overlay");
  const slider = byId("map-slider"), info = byId("map-info"), blocksOf = byId("map-blocks");
  const mode = byId("map-mode"), search = byId("map-search"), play = byId("map-play"), legend = byId("map-legend");
  // An arena that does not begin at the start of a pool has one cell more than it has pools.
  const longest = Math.max(0, ...meta.regions.filter((region) => region.kind === 0).map((region) => region.cells));
  const CELLS_A_LINE = longest > 64 && longest <= 72 ? longest : 64;
  const columns = {}, changes = {}, lists = {};
  let ids, starts, keyframes = [], every = 1, current = -1, zoom = 1, selected = -1, hovered = -1, playing = 0;
  let layout, pixels, image, lookup = {}, isMatch = null, regionOf;

  const bytes = (value) => {
    if (value < 1024) return `${value} B`;
    const units = ["KiB", "MiB", "GiB", "TiB"];
    let at = -1;
    do { value /= 1024; at++; } while (value >= 1023.95 && at < units.length - 1);
    return `${value < 10 ? value.toFixed(2) : value.toFixed(1)} ${units[at]}`;
  };
  const time = (ns) => ns >= 1e9 ? `${(ns / 1e9).toFixed(2)} s` : ns >= 1e6 ? `${(ns / 1e6).toFixed(2)} ms` : `${(ns / 1e3).toFixed(0)} µs`;
  const count = (number, noun) => `${number.toLocaleString("en-US")} ${noun}${number === 1 ? "" : "s"}`;
  const hex = (value) => "0x" + value.toString(16);

  // ---- decoding ----

  async function inflated(id) {
    const packed = Uint8Array.from(atob(byId(id).textContent.trim()), (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  function unpacked(raw, names, length, target) {
    let at = 0;
    for (const [name, width] of names) {
      const values = width === 2 ? new Uint16Array(length) : new Uint32Array(length);
      for (let plane = 0; plane < width; plane++, at += length)
        for (let index = 0; index < length; index++) values[index] += raw[at + index] * 2 ** (8 * plane);
      target[name] = values;
    }
  }

  function cumulative(deltas, firsts) {
    for (let part = 0; part + 1 < firsts.length; part++)
      for (let index = firsts[part] + 1; index < firsts[part + 1]; index++) deltas[index] += deltas[index - 1];
    return deltas;
  }

  // Returns the cells that change.
  function apply(frame) {
    const first = starts[frame], last = starts[frame + 1];
    for (const name in columns) {
      const to = columns[name], from = changes[name];
      for (let index = first; index < last; index++) to[ids[index]] = from[index];
    }
    return ids.subarray(first, last);
  }

  function seek(frame) {
    frame = Math.max(0, Math.min(meta.frames.length - 1, frame));
    if (frame === current) return;
    let touched = null;
    if (frame === current + 1) {
      touched = apply(frame);
    } else {
      const key = Math.floor(frame / every);
      for (const name in columns) columns[name].set(keyframes[key][name]);
      for (let each = key * every + 1; each <= frame; each++) apply(each);
    }
    current = frame;
    paint(touched);
    describe();
  }

  // ---- colours ----

  const packed = (red, green, blue) => (255 << 24 | blue << 16 | green << 8 | red) >>> 0;
  const parts = (text) => [1, 3, 5].map((at) => parseInt(text.trim().slice(at, at + 2), 16));
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name);
  const mixed = (from, to, share) => from.map((value, at) => Math.round(value + (to[at] - value) * share));
  const colour = (name) => packed(...parts(css(name)));

  function ramp(names, length) {
    const stops = names.map((name) => parts(css(name)));
    return Uint32Array.from({length}, (_, at) => {
      const place = at / (length - 1) * (stops.length - 1), low = Math.min(Math.floor(place), stops.length - 2);
      return packed(...mixed(stops[low], stops[low + 1], place - low));
    });
  }

  function prepareColours() {
    const hues = [1, 2, 3, 4, 5, 6, 7, 8].map((number) => colour(`--hue-${number}`));
    lookup = {
      absent: colour("--map-absent"), free: colour("--map-free"), released: colour("--map-released"),
      unknown: colour("--map-unknown"), ground: parts(css("--map-absent")),
      occupancy: ramp(["--sparse", "--half", "--full"], 256),
      size_class: ramp(["--low", "--middle", "--high"], meta.class_limits.length),
      age: ramp(["--low", "--middle", "--high"], 256),
      site: Uint32Array.from(meta.sites, (_, rank) => rank < hues.length ? hues[rank] : colour("--map-other")),
      type: Uint32Array.from(meta.types, (_, rank) => rank < hues.length ? hues[rank] : colour("--map-other")),
    };
  }

  function colourOf(cell) {
    const mapped = columns.mapped_bytes[cell];
    if (!mapped) return lookup.absent;
    const live = columns.live_bytes[cell];
    if (!live) return columns.resident_bytes[cell] ? lookup.free : lookup.released;
    let found;
    if (mode.value === "occupancy") {
      found = lookup.occupancy[Math.min(255, Math.round(255 * live / mapped))];
    } else if (mode.value === "size_class") {
      const code = columns.size_class[cell];
      found = code === NOTHING ? lookup.unknown : lookup.size_class[code];
    } else if (mode.value === "site" || mode.value === "type") {
      const code = columns[mode.value][cell];
      found = code === NOTHING ? lookup.unknown : lookup[mode.value][code];
    } else {
      const now = meta.frames[current].time_ns, age = now - columns.oldest[cell] * meta.unit_ns;
      const share = Math.log10(1 + 999 * Math.max(0, age) / Math.max(1, now)) / 3;
      found = lookup.age[Math.min(255, Math.round(255 * share))];
    }
    if (isMatch && !isMatch.sites[columns.site[cell]] && !isMatch.types[columns.type[cell]]) {
      const rgb = mixed([found & 255, found >> 8 & 255, found >> 16 & 255], lookup.ground, 0.85);
      return packed(...rgb);
    }
    return found;
  }

  // ---- layout: groups below each other, each with lines of cells in one or more columns ----

  function groupsOf() {
    const found = [];
    let cell = 0;
    meta.regions.forEach((region, number) => {
      const key = `${region.process}/${region.kind}`;
      if (!found.length || found[found.length - 1].key !== key) {
        const process = meta.processes[region.process];
        found.push({key, title: (process ? process + ": " : "") + meta.kinds[region.kind], lines: [], regions: 0});
      }
      const group = found[found.length - 1];
      group.regions++;
      for (let first = 0; first < region.cells; first += CELLS_A_LINE)
        group.lines.push({number, first: cell + first, cells: Math.min(CELLS_A_LINE, region.cells - first)});
      cell += region.cells;
    });
    return found;
  }

  function arranged(groups, width, side) {
    const gap = side > 3 ? GAP : 1, gutter = side >= 10 ? GUTTER : 0;
    const lineWidth = gutter + CELLS_A_LINE * side + 14;
    const across = Math.max(1, Math.floor((width + 14) / lineWidth));
    let top = 0;
    const placed = groups.map((group) => {
      const rows = Math.ceil(group.lines.length / across), at = top + HEADING;
      top = at + rows * (side + gap) + 10;
      return {...group, top: at, rows};
    });
    return {groups: placed, side, gap, gutter, lineWidth, across: Math.max(1, across), height: top};
  }

  function arrange() {
    const groups = groupsOf(), width = view.clientWidth;
    let side = Math.max(3, Math.min(16, Math.floor((width - GUTTER) / CELLS_A_LINE)));
    const lowest = Math.min(side, 3);
    while (side > lowest && arranged(groups, width, side).height > HIGHEST) side--;
    side = Math.max(1, Math.round(side * zoom));
    layout = arranged(groups, Math.max(width, side * CELLS_A_LINE), side);
    layout.width = Math.max(width, layout.across * layout.lineWidth);
    layout.places = new Int32Array(2 * meta.cells);
    for (const group of layout.groups)
      group.lines.forEach((line, index) => {
        const left = Math.floor(index / group.rows) * layout.lineWidth + layout.gutter;
        const top = group.top + index % group.rows * (side + layout.gap);
        for (let at = 0; at < line.cells; at++) {
          layout.places[2 * (line.first + at)] = left + at * side;
          layout.places[2 * (line.first + at) + 1] = top;
        }
      });
    for (const each of [canvas, overlay]) {
      each.width = layout.width;
      each.height = layout.height;
      each.style.width = layout.width + "px";
      each.style.height = layout.height + "px";
    }
    image = canvas.getContext("2d").createImageData(layout.width, layout.height);
    pixels = new Uint32Array(image.data.buffer);
    paint(null);
    describe();
  }

  function paint(touched) {
    if (!layout || current < 0) return;
    const {side, places, width} = layout, inner = side > 3 ? side - 1 : side;
    const all = touched === null || mode.value === "age";
    const length = all ? meta.cells : touched.length;
    for (let index = 0; index < length; index++) {
      const cell = all ? index : touched[index], value = colourOf(cell);
      const left = places[2 * cell], top = places[2 * cell + 1];
      for (let at = top * width + left, end = at + inner * width; at < end; at += width)
        for (let pixel = at; pixel < at + inner; pixel++) pixels[pixel] = value;
    }
    const context = canvas.getContext("2d");
    context.putImageData(image, 0, 0);
    context.textBaseline = "middle";
    for (const group of layout.groups) {
      context.font = "600 13px system-ui, sans-serif";
      context.fillStyle = css("--text");
      context.fillText(group.title, 0, group.top - HEADING / 2);
      if (!layout.gutter) continue;
      context.font = "11px ui-monospace, monospace";
      context.fillStyle = css("--soft");
      group.lines.forEach((line, index) => {
        const [x, y] = [layout.places[2 * line.first], layout.places[2 * line.first + 1]];
        if (index % group.rows % Math.ceil(12 / (side + layout.gap)) === 0)
          context.fillText(hex(addressOf(line.first)), x - layout.gutter, y + side / 2);
      });
    }
    outline();
  }

  function outline() {
    const context = overlay.getContext("2d");
    context.clearRect(0, 0, overlay.width, overlay.height);
    for (const [cell, width] of [[hovered, 1.5], [selected, 2.5]]) {
      if (cell < 0) continue;
      context.strokeStyle = css("--text");
      context.lineWidth = width;
      const [x, y] = [layout.places[2 * cell], layout.places[2 * cell + 1]];
      context.strokeRect(x - 1, y - 1, layout.side + 1, layout.side + 1);
    }
  }

  function cellAt(x, y) {
    const {side, gap, gutter, lineWidth} = layout;
    for (const group of layout.groups) {
      const row = Math.floor((y - group.top) / (side + gap));
      if (y < group.top || row >= group.rows) continue;
      const line = group.lines[Math.floor(x / lineWidth) * group.rows + row];
      const at = Math.floor((x % lineWidth - gutter) / side);
      return line && at >= 0 && at < line.cells ? line.first + at : -1;
    }
    return -1;
  }

  // ---- words ----

  const firstCellOf = (number) => meta.regions[number].firstCell;
  const addressOf = (cell) => {
    const region = meta.regions[regionOf[cell]];
    return region.address + (cell - region.firstCell) * region.cell_bytes;
  };

  function element(tag, text, parent) {
    const made = document.createElement(tag);
    made.textContent = text;
    parent.appendChild(made);
    return made;
  }

  function regionSummary(number) {
    const region = meta.regions[number], sites = new Map();
    let live = 0, mapped = 0, blocks = 0, used = 0, cells = 0, resident = 0;
    for (let cell = region.firstCell; cell < region.firstCell + region.cells; cell++) {
      if (!columns.mapped_bytes[cell]) continue;
      cells++;
      mapped += columns.mapped_bytes[cell];
      live += columns.live_bytes[cell];
      resident += columns.resident_bytes[cell];
      blocks += columns.blocks[cell];
      if (!columns.live_bytes[cell]) continue;
      used++;
      const site = columns.site[cell];
      if (site !== NOTHING) sites.set(site, (sites.get(site) || 0) + columns.live_bytes[cell]);
    }
    return {live, mapped, blocks, used, cells, resident, sites: [...sites].sort((a, b) => b[1] - a[1])};
  }

  function describe() {
    if (current < 0) return;
    const frame = meta.frames[current];
    slider.value = current;
    const label = frame.label ? ` · ${frame.label === "peak" ? "peak of resident memory" : frame.label}` : "";
    byId("map-time").textContent = time(frame.time_ns) + label;
    slider.setAttribute("aria-valuetext", time(frame.time_ns) + label);
    const cell = hovered >= 0 ? hovered : selected;
    info.textContent = "";
    if (cell < 0) {
      element("p", "Point at a cell, or choose one with the arrow keys. Click or Enter lists its blocks.", info);
      return;
    }
    const region = meta.regions[regionOf[cell]], live = columns.live_bytes[cell], mapped = columns.mapped_bytes[cell];
    element("h4", `${meta.names[region.kind]} at ${hex(region.address)}`, info);
    const found = regionSummary(regionOf[cell]);
    if (!found.mapped) {
      element("p", "Not mapped at this moment.", info);
      return;
    }
    const share = Math.round(100 * found.live / found.mapped);
    element("p", `${bytes(found.live)} of ${bytes(found.mapped)} live (${share} %), ${count(found.blocks, "block")}, ` +
      `${found.used} of ${count(found.cells, "cell")} in use, ${bytes(found.resident)} resident.`, info);
    if (region.kind === 0 && found.blocks)
      element("p", `${count(found.blocks, "block")} ${found.blocks === 1 ? "pins" : "pin"} this arena: without them, ${bytes(found.resident)} can be released.`, info);
    if (found.sites.length) {
      const list = element("ul", "", info);
      for (const [site, size] of found.sites.slice(0, 4)) element("li", `${meta.sites[site]}: cells with ${bytes(size)} live`, list);
    }
    element("h4", `Cell ${cell - region.firstCell + 1}, ${hex(addressOf(cell))}`, info);
    if (!mapped) {
      element("p", "Not mapped at this moment.", info);
      return;
    }
    const cellShare = Math.round(100 * live / mapped);
    const code = columns.size_class[cell];
    const size = live && code !== NOTHING ? `, ${region.kind === 0 ? "" : "mostly "}of ${bytes(meta.class_limits[code])}` : "";
    element("p", `${count(columns.blocks[cell], "block")}${size}: ${bytes(live)} of ${bytes(mapped)} live (${cellShare} %), ` +
      `${bytes(columns.free_bytes[cell])} free, ${bytes(columns.resident_bytes[cell])} resident.`, info);
    if (live && meta.has_origins) {
      const site = columns.site[cell];
      const age = Math.max(0, frame.time_ns - columns.oldest[cell] * meta.unit_ns);
      const from = site === NOTHING ? "" : `Most bytes from ${meta.sites[site]}. `;
      const type = columns.type[cell], of = type === NOTHING ? "" : `Most bytes in objects of type ${meta.types[type]}. `;
      element("p", `${from}${of}Oldest block: ${time(age)} old.`, info);
    }
  }

  function listBlocks(cell) {
    blocksOf.textContent = "";
    if (cell < 0) return;
    const list = lists[current];
    if (!list) {
      element("p", Object.keys(lists).length ? "Blocks are listed at the peak, at the end, and at the start of phases." : "This page lists no blocks.", blocksOf);
      return;
    }
    const found = [];
    for (let index = 0; index < list.length && found.length <= 100; index++) if (list.cell[index] === cell) found.push(index);
    if (!found.length) {
      element("p", columns.blocks[cell] ? "The page lists the blocks of the emptiest regions only; this one is not among them." : "No block begins in this cell.", blocksOf);
      return;
    }
    const table = element("table", "", blocksOf);
    element("caption", `Live blocks of the cell at ${hex(addressOf(cell))}${found.length > 100 ? ", the first 100" : ""}`, table);
    const head = element("tr", "", element("thead", "", table));
    for (const text of ["address", "requested", "allocated", "age", "thread", "call site"]) element("th", text, head);
    const body = element("tbody", "", table);
    for (const index of found.slice(0, 100)) {
      const row = element("tr", "", body), site = list.site[index];
      const age = meta.frames[current].time_ns - list.since[index] * meta.unit_ns;
      for (const text of [hex(addressOf(cell) + list.offset[index]), bytes(list.requested[index]), bytes(list.bytes[index]),
        time(Math.max(0, age)), String(list.thread[index]), site === NOTHING ? "unknown" : meta.sites[site]]) element("td", text, row);
    }
  }

  function showLegend() {
    legend.textContent = "";
    const entry = (value, text) => {
      const item = element("span", "", legend), box = element("i", "", item);
      box.style.background = `rgb(${value & 255} ${value >> 8 & 255} ${value >> 16 & 255})`;
      item.append(text);
    };
    const gradient = (name, from, to) => {
      const item = element("span", from + " ", legend), bar = element("b", "", item), table = lookup[name];
      const stops = [0, 0.25, 0.5, 0.75, 1].map((share) => table[Math.round(share * (table.length - 1))]);
      bar.style.background = `linear-gradient(90deg, ${stops.map((value) => `rgb(${value & 255} ${value >> 8 & 255} ${value >> 16 & 255})`)})`;
      item.append(" " + to);
    };
    if (mode.value === "occupancy") gradient("occupancy", "few live bytes", "all live");
    if (mode.value === "size_class") gradient("size_class", "blocks of 8 B", "large blocks");
    if (mode.value === "age") gradient("age", "oldest block new", "as old as the run");
    const names = {site: meta.sites, type: meta.types}[mode.value];
    if (names) {
      names.slice(0, 8).forEach((name, rank) => entry(lookup[mode.value][rank], name));
      if (names.length > 8) entry(colour("--map-other"), `${names.length - 8} others`);
      entry(lookup.unknown, "unknown");
    }
    entry(lookup.free, "free, resident");
    entry(lookup.released, "free, not resident");
    entry(lookup.absent, "not mapped");
  }

  // ---- controls ----

  function choose(cell) {
    selected = cell;
    outline();
    describe();
    listBlocks(cell);
  }

  function step() {
    if (!playing) return;
    if (current >= meta.frames.length - 1) { togglePlay(); return; }
    const due = Math.floor((performance.now() - playing) / 8000 * meta.frames.length);
    if (due > current) seek(Math.min(due, current + 4));
    requestAnimationFrame(step);
  }

  function togglePlay() {
    const from = current >= meta.frames.length - 1 ? 0 : current;
    playing = playing ? 0 : performance.now() - from * 8000 / meta.frames.length;
    play.textContent = playing ? "Pause" : "Play";
    if (playing) { seek(from); requestAnimationFrame(step); }
  }

  function zoomBy(factor) {
    zoom = Math.max(0.5, Math.min(8, zoom * factor));
    arrange();
  }

  function connect() {
    slider.max = meta.frames.length - 1;
    slider.addEventListener("input", () => { seek(Number(slider.value)); listBlocks(selected); });
    mode.addEventListener("change", () => { showLegend(); paint(null); });
    play.addEventListener("click", togglePlay);
    byId("map-larger").addEventListener("click", () => zoomBy(1.5));
    byId("map-smaller").addEventListener("click", () => zoomBy(1 / 1.5));
    for (const button of document.querySelectorAll("[data-frame]"))
      button.addEventListener("click", () => { seek(Number(button.dataset.frame)); listBlocks(selected); });
    search.addEventListener("input", () => {
      const text = search.value.trim().toLowerCase();
      const matches = (names) => Uint8Array.from(names, (name) => name.toLowerCase().includes(text));
      const sum = (flags) => flags.reduce((total, each) => total + each, 0);
      isMatch = text ? {sites: matches(meta.sites), types: matches(meta.types)} : null;
      byId("map-found").textContent = isMatch
        ? `${count(sum(isMatch.sites), "call site")}, ${count(sum(isMatch.types), "type")}` : "";
      paint(null);
    });
    overlay.addEventListener("mousemove", (event) => { hovered = cellAt(event.offsetX, event.offsetY); outline(); describe(); });
    overlay.addEventListener("mouseleave", () => { hovered = -1; outline(); describe(); });
    overlay.addEventListener("click", (event) => choose(cellAt(event.offsetX, event.offsetY)));
    view.addEventListener("keydown", (event) => {
      const moves = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -CELLS_A_LINE, ArrowDown: CELLS_A_LINE};
      if (event.key in moves) choose(Math.max(0, Math.min(meta.cells - 1, selected < 0 ? 0 : selected + moves[event.key])));
      else if (event.key === " ") togglePlay();
      else if (event.key === "Enter") listBlocks(selected);
      else if (event.key === "+") zoomBy(1.5);
      else if (event.key === "-") zoomBy(1 / 1.5);
      else if (event.key === ".") seek(current + 1);
      else if (event.key === ",") seek(current - 1);
      else if (event.key === "Home") seek(0);
      else if (event.key === "End") seek(meta.frames.length - 1);
      else return;
      event.preventDefault();
    });
    let waiting = 0;
    addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(arrange, 150); });
  }

  async function start() {
    regionOf = new Uint32Array(meta.cells);
    let cell = 0;
    meta.regions.forEach((region, number) => {
      region.firstCell = cell;
      regionOf.fill(number, cell, cell += region.cells);
    });
    starts = [0];
    for (const frame of meta.frames) starts.push(starts[starts.length - 1] + frame.changes);
    const found = {};
    unpacked(await inflated("map-data"), meta.columns, starts[starts.length - 1], found);
    ids = cumulative(found.cell, starts);
    for (const [name] of meta.columns.slice(1)) {
      changes[name] = found[name];
      columns[name] = new found[name].constructor(meta.cells);
    }
    for (const {frame, length} of meta.lists) {
      lists[frame] = {length};
      unpacked(await inflated(`map-blocks-${frame}`), meta.block_columns, length, lists[frame]);
      cumulative(lists[frame].cell, [0, length]);
    }
    every = Math.max(4, Math.ceil(Math.sqrt(meta.frames.length)));
    for (let frame = 0; frame < meta.frames.length; frame++) {
      apply(frame);
      if (frame % every === 0) keyframes.push(Object.fromEntries(Object.keys(columns).map((name) => [name, columns[name].slice()])));
    }
    prepareColours();
    connect();
    showLegend();
    arrange();
    seek(meta.frames.length - 1);
    view.dataset.ready = "yes";
    window.heapMapReady = true;
  }

  const api = {
    seek,
    recolour: () => { prepareColours(); showLegend(); paint(null); },
    cell: (cell) => Object.fromEntries(Object.keys(columns).map((name) => [name, columns[name][cell]])),
    place: (cell) => [layout.places[2 * cell] + layout.side / 2, layout.places[2 * cell + 1] + layout.side / 2],
  };
  if (meta.frames.length && meta.cells) api.started = start();
  else view.hidden = true;
  return api;
})();
