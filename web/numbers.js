/** Numbers in texts. */

/** A number in so many digits, without the zeros at its end. */
export function short(number, digits = 3) {
  return String(+number.toPrecision(digits));
}
