/**
 * Markdown, the light part that models write: headings, lists, quotes, code, tables, emphasis,
 * links. Text goes into text nodes alone; nothing of it becomes HTML, and no picture is loaded.
 */

import { copyButton, make } from "./dom.js";

const DEEPEST = 6; // of lists and quotes in each other; what lies deeper is plain text
const FENCE = /^ {0,3}(`{3,}(?=[^`]*$)|~{3,})\s*([\w+#.-]{0,30})/;
const HEADING = /^(#{1,6})\s+(\S.*)$/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^(\s{0,12})([-*+]|\d{1,9}[.)])\s+(?=\S)/;
const DIVIDER = /^:?-+:?$/; // a cell of it

// One alternative for each kind; lengths are bounded, so that no text takes long. Emphasis does not
// begin or end inside a word: 2*3*4 and 2**3 are sums.
const INLINE = new RegExp([
  /(?<!`)(`{1,3})(?!`)([^\n]{1,2000}?)(?<!`)\1(?!`)/,
  /(?<![\w*])\*\*(?=\S)((?:[^*]|\*(?!\*)){1,2000}?)\*\*(?!\w)/,
  /(?<![\w*])\*(?=[^\s*])([^*\n]{0,1000}[^\s*])\*(?![\w*])/,
  /(?<!\w)_(?=[^\s_])([^_\n]{0,1000}[^\s_])_(?!\w)/,
  /~~(?=\S)([^~\n]{1,1000})~~/,
  /!?\[([^\]\n]{1,500})\]\((https?:\/\/[^\s()<>]{1,1000})\)/,
  /(https?:\/\/[^\s<>()"'`]{1,1000}[^\s<>()"'`.,;:!?*_])/,
  /\\([\\`*_#|~])/,
].map((one) => one.source).join("|"), "g");

const shown = new WeakMap(); // element -> the sources of the blocks in it

/** Shows a text in an element. Blocks that are as they were stay, and with them what is selected. */
export function renderMarkdown(target, text) {
  const sources = blocksOf(text.split("\n"));
  const before = shown.get(target) ?? [];
  let same = 0;
  while (same < before.length && before[same] === sources[same]) same += 1;
  while (target.childNodes.length > same) target.lastChild.remove();
  target.append(...sources.slice(same).map((source) => blockNode(source.split("\n"), 0)));
  shown.set(target, sources);
}

// ---- blocks -------------------------------------------------------------------------------------

/** The source of each block of some lines. */
function blocksOf(lines) {
  const out = [];
  for (let at = 0; at < lines.length;) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const end = endOfBlock(lines, at);
    out.push(lines.slice(at, end).join("\n"));
    at = end;
  }
  return out;
}

function endOfBlock(lines, at) {
  const fence = FENCE.exec(lines[at]);
  if (fence) return endOfFence(lines, at, fence[1]);
  if (HEADING.test(lines[at]) || RULE.test(lines[at])) return at + 1;
  if (QUOTE.test(lines[at])) return endWhere(lines, at, (line) => !QUOTE.test(line));
  if (ITEM.test(lines[at])) return endOfList(lines, at);
  if (isTable(lines, at)) return endWhere(lines, at, (line) => !line.includes("|"));
  return endWhere(lines, at, (line, i) => !line.trim() || beginsBlock(lines, i));
}

function beginsBlock(lines, at) {
  const line = lines[at];
  return [FENCE, HEADING, RULE, QUOTE, ITEM].some((one) => one.test(line)) || isTable(lines, at);
}

function isTable(lines, at) {
  const [head, divider] = [lines[at], lines[at + 1] ?? ""];
  if (!head.includes("|") || !divider.includes("-")) return false;
  const dashes = cells(divider);
  return dashes.every((cell) => DIVIDER.test(cell)) && cells(head).length === dashes.length;
}

function endWhere(lines, at, ends) {
  let end = at + 1;
  while (end < lines.length && !ends(lines[end], end)) end += 1;
  return end;
}

function endOfFence(lines, at, mark) {
  const closes = (line) => {
    const text = line.trim();
    return text.length >= mark.length && [...text].every((one) => one === mark[0]);
  };
  const end = endWhere(lines, at, closes);
  return Math.min(end + 1, lines.length);
}

/** Of a list: its items, what is indented under them, and single empty lines between. */
function endOfList(lines, at) {
  const ends = (line, i) => {
    if (ITEM.test(line) || /^\s{2,}\S/.test(line)) return false;
    if (line.trim()) return !lines[i - 1].trim() || beginsBlock(lines, i);
    const next = lines[i + 1] ?? "";
    return !(ITEM.test(next) || /^\s{2,}\S/.test(next));
  };
  return endWhere(lines, at, ends);
}

function blockNode(lines, depth) {
  const [first] = lines;
  const fence = FENCE.exec(first);
  if (fence) return codeNode(lines, fence);
  const heading = HEADING.exec(first);
  if (heading) {
    const level = Math.min(heading[1].length + 2, 6); // below those of the page
    return make(`h${level}`, { dir: "auto" }, ...inline(heading[2]));
  }
  if (RULE.test(first)) return make("hr");
  if (QUOTE.test(first) && depth < DEEPEST) {
    const inner = lines.map((line) => line.replace(QUOTE, ""));
    return make("blockquote", {}, ...nodes(inner, depth + 1));
  }
  if (ITEM.test(first) && depth < DEEPEST) return listNode(lines, depth);
  if (isTable(lines, 0)) return tableNode(lines);
  return make("p", { dir: "auto" }, ...inline(lines.join("\n")));
}

function nodes(lines, depth) {
  return blocksOf(lines).map((source) => blockNode(source.split("\n"), depth));
}

function codeNode(lines, fence) {
  const last = lines.at(-1).trim();
  const closed = lines.length > 1 && last.startsWith(fence[1]) && !last.replaceAll(fence[1][0], "");
  const text = lines.slice(1, closed ? -1 : undefined).join("\n");
  const head = make("div", { class: "code-head" }, make("span", {}, fence[2]), copyButton(() => text));
  const code = make("pre", { tabindex: "0" }, make("code", {}, text));
  return make("div", { class: "code" }, head, code);
}

function listNode(lines, depth) {
  const [, indent, mark] = ITEM.exec(lines[0]);
  const items = [];
  for (const line of lines) {
    const item = ITEM.exec(line);
    if (item && item[1].length <= indent.length + 1) items.push([line.slice(item[0].length)]);
    else items.at(-1).push(line.replace(/^\s{1,4}/, ""));
  }
  const children = items.map((inner) => make("li", { dir: "auto" }, ...itemNodes(inner, depth)));
  const number = parseInt(mark, 10);
  return Number.isNaN(number)
    ? make("ul", {}, ...children)
    : make("ol", { start: number }, ...children);
}

/** What stands in an item; a lone paragraph without a frame of its own. */
function itemNodes(lines, depth) {
  const [first, ...rest] = nodes(lines, depth + 1);
  if (first === undefined) return [];
  return first.tagName === "P" ? [...first.childNodes, ...rest] : [first, ...rest];
}

function tableNode(lines) {
  const row = (line, tag) => make("tr", {}, ...cells(line).map((cell) => (
    make(tag, { dir: "auto" }, ...inline(cell))
  )));
  const [head, , ...body] = lines;
  const table = make("table", {}, make("thead", {}, row(head, "th")),
    make("tbody", {}, ...body.map((line) => row(line, "td"))));
  return make("div", { class: "table", tabindex: "0" }, table);
}

function cells(line) {
  const inner = line.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "");
  return inner.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

// ---- inside a line ------------------------------------------------------------------------------

/** The nodes of a text within a block. */
function inline(text, depth = 0) {
  if (depth > DEEPEST) return [text];
  const out = [];
  let end = 0;
  for (const found of text.matchAll(INLINE)) {
    if (found.index > end) out.push(text.slice(end, found.index));
    out.push(inlineNode(found, depth + 1));
    end = found.index + found[0].length;
  }
  if (end < text.length) out.push(text.slice(end));
  return out;
}

function inlineNode(found, depth) {
  const [, , code, strong, star, underscore, struck, label, target, address, escaped] = found;
  if (code !== undefined) return make("code", {}, code);
  if (strong !== undefined) return make("strong", {}, ...inline(strong, depth));
  const stressed = star ?? underscore;
  if (stressed !== undefined) return make("em", {}, ...inline(stressed, depth));
  if (struck !== undefined) return make("del", {}, ...inline(struck, depth));
  if (target !== undefined) return link(label, target);
  if (address !== undefined) return link(address, address);
  return escaped;
}

/** A link that says where it leads; the text of one may say anything. */
function link(label, target) {
  if (!URL.canParse(target)) return label;
  const rel = "noopener noreferrer nofollow";
  const made = make("a", { href: target, rel, target: "_blank", title: target }, label);
  if (label === target) return made;
  const host = make("span", { class: "host" }, ` (${new URL(target).host})`);
  return make("span", {}, made, host);
}
