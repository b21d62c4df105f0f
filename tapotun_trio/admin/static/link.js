// The connection to the daemon: session, live messages and requests; it reconnects by itself.
//
//   login ──token──▶ connecting ──first status──▶ live ──silence, break──▶ lost ──after a pause──▶ connecting
//     ▲                  └── 401: the session is over (a restarted daemon knows none) ─────────┐
//     └─────────────────────────────────────────────────────────────────────────────────────────┘

const SILENCE_MS = 6000; // a status comes every second
const ANSWER_MS = 10_000;
const ACTION_MS = 120_000; // a reload may restart interfaces
const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 10_000;
// Scripts cannot see the session's cookie. This mark says whether there may be one; a first visit sends no request.
const MARK = "tapotun-logged-in";
const POLICY_VIOLATION = 1008; // the daemon's close code when the session is over
// A browser does not tell scripts why a WebSocket was refused.
const NOT_LIVE =
  "no WebSocket at /api/live: a proxy must forward Host, Upgrade and Connection, or 16 panels are open already";

/** A request that the daemon or a proxy has refused. The message is for the operator. */
export class Refused extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

/**
 * `on.state(link)` is called after every change of this object, `on.status(message)` and `on.events(message)` with the
 * daemon's messages, and `on.history(document)` with its history before the first of them.
 */
export class Link {
  state = "login"; // login, connecting, live, lost
  why = ""; // of login and lost
  lostAt = null; // ms of this machine's clock: when the connection was lost
  nextTryAt = null; // ms of this machine's clock
  session = null; // {csrf, name, version, pid}
  #on;
  #socket = null;
  #heard = 0; // performance.now()
  #pause = FIRST_PAUSE_MS;
  #timer = null;
  #fresh = false; // just logged in
  #attempt = 0; // a late response to an older attempt is ignored

  constructor(on) {
    this.#on = on;
    setInterval(() => this.#watch(), 1000);
    addEventListener("online", () => this.retry());
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden) this.retry();
    });
  }

  /** Continue the browser's session, if there may be one; otherwise show the login. */
  start() {
    if (localStorage.getItem(MARK) === null) this.#to("login", "");
    else this.#connect();
  }

  /** Throws Refused. */
  async login(token) {
    await ask("POST", "api/login", { body: { token } });
    localStorage.setItem(MARK, "yes");
    this.#fresh = true;
    this.#connect();
  }

  /** Log out and reload the page, so that it holds no data. Throws Refused: the session continues. */
  async logout() {
    await this.act("api/logout").catch((error) => {
      if (error.status !== 401) throw error;
    });
    localStorage.removeItem(MARK);
    location.reload();
  }

  /** Send an action; returns the response. Throws Refused. */
  async act(path, body = {}) {
    try {
      return await ask("POST", path, { body, csrf: this.session?.csrf, timeout: ACTION_MS });
    } catch (error) {
      if (error.status === 401) this.#over();
      throw error;
    }
  }

  /** Read a document. Throws Refused. */
  async read(path) {
    try {
      return await ask("GET", path);
    } catch (error) {
      if (error.status === 401) this.#over();
      throw error;
    }
  }

  /** Reconnect now instead of at the next attempt. */
  retry() {
    if (this.state === "lost") this.#connect();
  }

  async #connect() {
    const attempt = this.#begin();
    if (this.state === "login") this.#to("connecting", "");
    this.nextTryAt = null;
    try {
      const session = await ask("GET", "api/session");
      if (attempt !== this.#attempt) return;
      this.session = session;
      this.#fresh = false;
      const past = await ask("GET", "api/history").catch((error) => {
        if (error.status !== 404) throw error; // an older daemon has no history
        return null;
      });
      if (attempt !== this.#attempt) return;
      if (past !== null) this.#on.history(past);
    } catch (error) {
      if (attempt !== this.#attempt) return;
      if (error.status === 401) this.#over();
      else this.#lose(error.message);
      return;
    }
    const url = new URL("api/live", document.baseURI);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(url);
    this.#socket = socket;
    this.#heard = performance.now();
    let talks = false;
    socket.addEventListener("message", (event) => {
      if (attempt !== this.#attempt) return;
      talks = true;
      this.#receive(event.data);
    });
    socket.addEventListener("close", (event) => {
      if (attempt !== this.#attempt) return;
      if (talks && event.code === POLICY_VIOLATION) this.#connect();
      else this.#lose(talks ? "the connection ended" : NOT_LIVE);
    });
  }

  #begin() {
    clearTimeout(this.#timer);
    this.#attempt += 1;
    this.#socket?.close();
    this.#socket = null;
    return this.#attempt;
  }

  #receive(text) {
    let message;
    try {
      message = JSON.parse(text);
    } catch {
      this.#begin();
      this.#lose("the daemon sent a malformed message");
      return;
    }
    this.#heard = performance.now();
    if (message.type === "events") this.#on.events(message);
    if (message.type !== "status") return;
    this.#pause = FIRST_PAUSE_MS;
    this.#on.status(message);
    if (this.state !== "live") {
      this.lostAt = null;
      this.#to("live", "");
    }
  }

  // A connection may break silently. A daemon that is stopped or hangs is silent too.
  #watch() {
    if (this.#socket !== null && performance.now() - this.#heard > SILENCE_MS) {
      this.#begin();
      this.#lose("the daemon went silent");
    }
  }

  #lose(why) {
    this.#begin();
    const wait = this.#pause * (0.8 + 0.4 * Math.random());
    this.#pause = Math.min(this.#pause * 2, LONGEST_PAUSE_MS);
    this.lostAt ??= Date.now();
    this.nextTryAt = Date.now() + wait;
    this.#timer = setTimeout(() => this.#connect(), wait);
    this.#to("lost", why);
  }

  #over() {
    this.#begin();
    let why = this.session === null ? "" : "The session has ended, or the daemon was restarted. Log in to continue.";
    if (this.#fresh) why = "The token was right, but this browser did not keep the session's cookie.";
    this.#fresh = false;
    localStorage.removeItem(MARK);
    this.session = null;
    this.lostAt = null;
    this.#pause = FIRST_PAUSE_MS;
    this.#to("login", why);
  }

  #to(state, why) {
    this.state = state;
    this.why = why;
    this.#on.state(this);
  }
}

async function ask(method, path, { body = null, csrf = null, timeout = ANSWER_MS } = {}) {
  const headers = {};
  if (body !== null) headers["Content-Type"] = "application/json";
  if (csrf) headers["X-CSRF-Token"] = csrf;
  let answer;
  let text;
  try {
    answer = await fetch(new URL(path, document.baseURI), {
      method,
      headers,
      body: body === null ? null : JSON.stringify(body),
      cache: "no-store",
      redirect: "error",
      signal: AbortSignal.timeout(timeout),
    });
    text = await answer.text();
  } catch {
    throw new Refused("the daemon does not answer");
  }
  let content = null;
  try {
    content = text === "" ? null : JSON.parse(text);
  } catch {
    // A page of a proxy and not the daemon's response: its status is enough.
  }
  if (answer.ok) return content;
  const pause = answer.status === 429 ? answer.headers.get("Retry-After") : null;
  const explained = typeof content?.error === "string";
  const message = explained ? content.error : `the response was ${answer.status} ${answer.statusText}`.trim();
  const hint = pause === null || message.includes(pause) ? "" : `; try again in ${pause} s`;
  throw new Refused(message + hint, answer.status);
}
