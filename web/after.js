/** Hears of calls that the host makes. */

/** Calls `then` after a method of an object, which need not have it. */
export function after(object, name, then) {
  const before = object[name];
  object[name] = function (...given) {
    const result = before?.apply(this, given);
    then(...given);
    return result;
  };
}
