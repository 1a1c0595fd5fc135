/**
 * Words that find a node beside its name: what samplers and schedules are called here and elsewhere.
 *
 * Newer hosts and front ends know them as `search_aliases`. Older front ends search names only. There what their search
 * found is complemented, so that no word has to stand in a name.
 */

/** Tells them to front ends that know them, where the host has not. */
export function addSearchWords(definitions, words) {
  definitions.forEach((definition, i) => {
    if (!words[definition.name] || definition.search_aliases) return;
    definitions[i] = { ...definition, search_aliases: words[definition.name] };
  });
}

/** Has every search find nodes by their words, after those whose names hold what is searched for. */
export function searchByWords(words) {
  const pinia = document.getElementById("vue-app")?.__vue_app__?.config.globalProperties.$pinia;
  const store = pinia?._s.get("nodeDef");
  const search = store?.nodeSearchService && Object.getPrototypeOf(store.nodeSearchService);
  if (!search?.searchNode) return; // of a front end to come
  const { searchNode } = search;
  search.searchNode = function (query, filters = [], options, ...more) {
    const found = searchNode.call(this, query, filters, options, ...more);
    if (filters.length || plain(query).length < 2) return found;
    const known = new Set(found.map(({ name }) => name));
    const ours = store.visibleNodeDefs.filter(({ name }) => !known.has(name) && holds(words[name] ?? [], query));
    const named = found.filter(({ display_name }) => holds([display_name], query));
    const others = found.filter((definition) => !named.includes(definition));
    return [...named, ...ours, ...others].slice(0, options?.limit);
  };
}

function holds(words, query) {
  return words.some((word) => plain(word).includes(plain(query)));
}

/** Letters, digits and plus signs: "DPM++ 2M", "dpm++_2m" and "dpm++2m" are one. */
function plain(text) {
  return text.toLowerCase().replace(/[^\p{L}\p{N}+]/gu, "");
}
