/** Asks the server. */

import { api } from "../../scripts/api.js";

/** The answer to a GET, or to a POST of `body`, a text of JSON. Throws where there is none that can be read. */
export async function answerTo(route, body) {
  const post = { method: "POST", headers: { "Content-Type": "application/json" }, body };
  const response = await api.fetchApi(route, body === undefined ? undefined : post);
  return response.json();
}
