import type { Json } from "./types.js";

/** A problem document (RFC 9457). The server's contract describes the other members. */
export interface Problem {
  readonly status: number;
  readonly code: string;
  readonly detail: string;
  readonly at?: string;
  readonly retry_after_s?: number;
  readonly column?: string;
  readonly confirm_deletes?: number;
  readonly holder?: string;
  readonly since?: string;
  readonly until?: string;
  readonly [member: string]: Json | undefined;
}

/**
 * Every error of the client. Decide by `code`: one of the server's, such as `sync_in_progress`, or
 * - `offline`: no response came to any attempt;
 * - `aborted`: by the caller's signal, or `close`;
 * - `not_logged_in`: there is neither a token nor a way to get one;
 * - `other_user`: the rows in the store are another user's;
 * - `restless`: others keep changing the data faster than it can be listed;
 * - `garbled`: a response that does not match the contract;
 * - `in_flight`: a row that is being sent cannot be reverted;
 * - `no_such_table`, `no_such_row`, `no_such_column`, `wrong_type`, `invalid_key`: the app's call is wrong.
 */
export class RollcallError extends Error {
  override readonly name = "RollcallError";
  constructor(
    readonly code: string,
    message: string,
    /** The server's problem document, if the server refused the request. */
    readonly problem?: Problem,
  ) {
    super(message);
  }
  get status(): number | undefined {
    return this.problem?.status;
  }
}
