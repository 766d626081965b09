"use strict";
(() => {
  const every = (selector, within = document) => [...within.querySelectorAll(selector)];
  const one = (selector) => document.querySelector(selector);
  every(".scripted").forEach((element) => { element.hidden = false; });

  // The JSON inside the page, as a file.
  async function value() {
    const data = one("#report");
    if (data.type === "application/json") return data.textContent;
    const packed = Uint8Array.from(atob(data.textContent), (character) => character.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  }
  function save(text, type, name) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = name;
    link.click();
    URL.revokeObjectURL(link.href);
  }
  one("#save").addEventListener("click", async () => save(await value(), "application/json", "report.json"));
  one("#save-rules")?.addEventListener("click", () => save(one("#rules pre").textContent, "text/plain", "map.toml"));

  const trees = one(".trees");
  if (!trees) return;

  // Lines between the leaves of both trees; what is folded is drawn from the line that it is folded into.
  const leaves = every("[data-group]", trees);
  const sides = [".source", ".target"].map((side) => {
    const found = new Map();
    every(`${side} [data-group]`, trees).forEach((leaf) => {
      const group = leaf.dataset.group;
      found.set(group, [...(found.get(group) || []), leaf]);
    });
    return found;
  });
  const bodies = new Map(every("#pairs > tbody").map((body) => [body.id.slice(1), body]));
  const namespace = "http://www.w3.org/2000/svg";
  const picture = document.createElementNS(namespace, "svg");
  picture.setAttribute("class", "links");
  picture.setAttribute("aria-hidden", "true");
  trees.append(picture);

  function shown(leaf) {
    let found = leaf.closest("li");
    for (let parent = found.parentElement; parent && parent !== trees; parent = parent.parentElement) {
      if (parent.hidden) return null;
      if (parent.tagName === "DETAILS" && !parent.open) found = parent.querySelector("summary");
    }
    return found.hidden ? null : found;
  }

  const kindOf = (group) => {
    const body = bodies.get(group);
    if (body.querySelector("span.unsure:not(:empty)")) return "unsure";
    return body.querySelector(".operation") ? "made" : "same";
  };
  const kinds = new Map([...bodies.keys()].map((group) => [group, kindOf(group)]));
  let lines = new Map();

  function draw() {
    const frame = trees.getBoundingClientRect();
    const places = new Map();
    const place = (element) => {
      if (!places.has(element)) places.set(element, element.getBoundingClientRect());
      return places.get(element);
    };
    const found = new Map();
    for (const [group, sources] of sides[0]) {
      for (const source of sources) {
        for (const target of sides[1].get(group) || []) {
          const ends = [shown(source), shown(target)];
          if (!ends[0] || !ends[1]) continue;
          const [left, right] = ends.map(place);
          const kind = kinds.get(group);
          const x = left.right - frame.left + 3, y = left.top + left.height / 2 - frame.top - 1;
          const u = right.left - frame.left - 3, v = right.top + right.height / 2 - frame.top - 1;
          const middle = trees.clientWidth / 2, bend = Math.max(12, (u - x) / 3);
          const way = `M${x.toFixed(1)} ${y.toFixed(1)}C${Math.max(x + bend, middle).toFixed(1)} ${y.toFixed(1)} ` +
            `${Math.min(u - bend, middle).toFixed(1)} ${v.toFixed(1)} ${u.toFixed(1)} ${v.toFixed(1)}`;
          const key = kind + way;
          if (!found.has(key)) found.set(key, { way, kind, groups: new Set() });
          found.get(key).groups.add(group);
        }
      }
    }
    lines = new Map();
    const paths = [...found.values()].map(({ way, kind, groups }) => {
      const path = document.createElementNS(namespace, "path");
      path.setAttribute("d", way);
      path.setAttribute("class", `link ${kind}`);
      groups.forEach((group) => lines.set(group, [...(lines.get(group) || []), path]));
      return path;
    });
    picture.replaceChildren(...paths);
    light(chosen);
  }
  let waiting = 0;
  const redraw = () => {
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(draw);
  };

  // The counterpart of a leaf under the pointer or with the focus.
  let chosen = null;
  let lit = [];
  const told = one("#told");
  const hint = "Point at a leaf, or move to it with Tab, to see its counterpart; Enter leads to its row below.";
  function light(group) {
    lit.forEach((element) => element.classList.remove("lit", "lit-inside"));
    lit = [];
    const add = (element, name = "lit") => {
      element.classList.add(name);
      lit.push(element);
    };
    picture.classList.toggle("choosing", group !== null);
    chosen = group;
    if (group === null) {
      told.textContent = hint;
      return;
    }
    sides.forEach((side) => (side.get(group) || []).forEach((leaf) => {
      const element = shown(leaf);
      if (element) element.tagName === "SUMMARY" ? add(element.parentElement, "lit-inside") : add(element);
    }));
    (lines.get(group) || []).forEach((line) => {
      picture.append(line);
      add(line);
    });
    const body = bodies.get(group);
    add(body);
    const [source, target, ...rest] = every("tr:first-child td", body).map((cell) => cell.innerText.trim().replace(/\s*\n\s*/g, " + "));
    told.textContent = [`${source} → ${target}`, ...rest.filter(Boolean)].join(" · ");
  }
  const groupOf = (target) => {
    const leaf = target.closest(".leaf");
    if (leaf) return leaf.querySelector("[data-group]").dataset.group;
    return null;
  };
  trees.addEventListener("pointerover", (event) => light(groupOf(event.target)));
  trees.addEventListener("pointerleave", () => light(null));
  trees.addEventListener("focusin", (event) => light(groupOf(event.target)));
  trees.addEventListener("focusout", () => light(null));
  trees.addEventListener("toggle", redraw, true);
  addEventListener("resize", redraw);
  new ResizeObserver(redraw).observe(trees);

  // Folding.
  const unfold = (open) => every("details", trees).forEach((details) => { details.open = open; });
  one("#unfold").addEventListener("click", () => unfold(true));
  one("#fold").addEventListener("click", () => unfold(false));
  addEventListener("beforeprint", () => { unfold(true); draw(); });

  // Filtering. A number that is looked for is also found in what is folded: layers_3 in layers_{0…31}.
  const texts = new Map();
  bodies.forEach((body, group) => {
    texts.set(group, every("tr:first-child td", body).slice(0, 2).flatMap((cell) => every("code", cell)).map((code) => code.textContent.toLowerCase()));
  });
  function holds(folded, number) {
    return folded.split(",").some((part) => {
      const [first, last] = part.split("…").map(Number);
      return last === undefined ? first === number : first <= number && number <= last;
    });
  }
  function matcher(query) {
    const escaped = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
    const parts = query.split(/(\d+)/);
    const pattern = parts.map((part, at) => at % 2 ? `(?:${part}|\\{([\\d…,]+)\\})` : escaped(part)).join("");
    const numbers = parts.filter((_, at) => at % 2).map(Number);
    const expression = new RegExp(pattern, "g");
    return (text) => [...text.matchAll(expression)].some((match) =>
      match.slice(1).every((folded, at) => folded === undefined || holds(folded, numbers[at])));
  }
  function filter() {
    const query = one("#filter").value.trim().toLowerCase();
    const matches = matcher(query);
    const wanted = new Set([...texts].filter(([, paths]) => !query || paths.some(matches)).map(([group]) => group));
    leaves.forEach((leaf) => { leaf.closest("li").hidden = !wanted.has(leaf.dataset.group); });
    every("details", trees).reverse().forEach((details) => {
      const some = every(":scope > ul > li", details).some((item) => !item.hidden);
      details.parentElement.hidden = !some;
      if (query && some) details.open = true;
    });
    bodies.forEach((body, group) => { body.hidden = !wanted.has(group); });
    one("#matches").textContent = query ? `${wanted.size} of ${texts.size} rows` : "";
    redraw();
  }
  one("#filter").addEventListener("input", filter);

  light(null);
  draw();
})();
