/**
 * Messages in another language: English templates with {placeholders}, each with its translation. What the pack says in
 * Python arrives as English text, and is found again by its template. What matches none stays English.
 */

const JOINTS = [
  [/ (?=\d+\/\d+$)/, " "], // how much of a stage is done
  [/ - /, "："], // as the host joins an input and its error
  [/(?<=[.!?]) /, ""], // sentences
  [/; /, "；"],
  [/: /, "："],
  [/, /, "，"],
];

const SENTENCES = /[.!?] /;
const PROSE = /[a-z]+ [a-z]+(?![\w=])/; // which a template of a word or two must not take for a value
const FEW = 8; // letters of such a template
const LONGEST = 1000; // letters of a line that is looked at
const DEEPEST = 5; // messages within each other

/** The messages of one language: {English template: translation}, and the words that values may be, as names of inputs. */
export class Messages {
  constructor(translations = {}, words = {}) {
    this.translations = new Map(Object.entries(translations).filter(([, text]) => text));
    this.words = words;
    this.seen = new Map(); // parts of the text that is at work, as they were translated
    this.templates = [...this.translations.keys()]
      .filter((english) => /\{\w+\}/.test(english))
      .sort((a, b) => said(b).length - said(a).length) // the one that says most goes first
      .map((english) => ({ english, ...pattern(english) }));
  }

  /** A text that the browser writes: "{n} steps" with {n: 8}. */
  t(english, values = {}) {
    return filled(this.translations.get(english) ?? english, values);
  }

  /** A text that came from Python, line by line. */
  translated(text) {
    if (!this.translations.size || typeof text !== "string") return text;
    this.seen.clear();
    const translated = (line) => (line.length > LONGEST ? line : this.#line(line, DEEPEST));
    return text.split("\n").map(translated).join("\n"); // prettier-ignore
  }

  #line(line, depth) {
    if (!depth || !/[a-z]/i.test(line)) return line;
    const [, before, text, after] = /^(\s*)(.*?)(\s*)$/s.exec(line);
    if (!this.seen.has(text)) this.seen.set(text, this.#found(text, depth) ?? text);
    return before + this.seen.get(text) + after;
  }

  #found(text, depth) {
    return this.#whole(text, depth) ?? this.#choice(text) ?? this.#parts(text, depth) ?? this.#whole(text, depth, true);
  }

  /** Names to choose from: "heun or midpoint". */
  #choice(text) {
    if (/^\S+( or \S+)+$/.test(text)) return text.replaceAll(" or ", ` ${this.t("or")} `);
  }

  /** A text that is one message; its values are translated as well, and hold several sentences only where asked for. */
  #whole(text, depth, sentences = false) {
    if (this.translations.has(text)) return this.translations.get(text);
    for (const { english, parts, regex, names, weak } of this.templates) {
      const given = contains(text, parts) ? regex.exec(text)?.slice(1) : null;
      if (!given || (!sentences && given.some((value) => SENTENCES.test(value)))) continue;
      const values = given.map((value) => this.words[value] ?? this.#line(value, depth - 1));
      if (weak && values.some((value, i) => value === given[i] && PROSE.test(value))) continue;
      return filled(this.translations.get(english), Object.fromEntries(names.map((name, i) => [name, values[i]])));
    }
  }

  /** A text of several messages, if any of them is known. */
  #parts(text, depth) {
    for (const [joint, theirs] of JOINTS) {
      const parts = text.split(joint);
      const known = parts.length > 1 ? parts.map((part) => this.words[part] ?? this.#line(part, depth - 1)) : parts;
      if (known.some((part, i) => part !== parts[i])) return known.join(theirs);
    }
  }
}

function filled(template, values) {
  return template.replace(/\{(\w+)\}/g, (hole, name) => values[name] ?? hole);
}

/** How much of a template is not a placeholder. */
function said(english) {
  return english.replace(/\{\w+\}/g, "");
}

/** Whether a text has the parts in order: quicker than the pattern, for the many that it does not match. */
function contains(text, parts) {
  let at = 0;
  return parts.every((part) => (at = text.indexOf(part, at) + part.length) >= part.length);
}

/** What a template matches, and the names of its placeholders in order. */
function pattern(english) {
  const [names, parts] = [[], english.split(/\{(\w+)\}/)];
  const source = parts.map((part, i) => {
    if (i % 2 === 0) return part.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
    names.push(part);
    return `('[^']*'|.*?)`; // what is quoted may hold anything
  });
  return { names, parts: parts.filter((_, i) => i % 2 === 0), regex: new RegExp(`^${source.join("")}$`, "s"), weak: said(english).replace(/\W/g, "").length < FEW };
}
