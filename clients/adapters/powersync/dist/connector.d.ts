/**
 * The backend connector for PowerSync's SDKs. The SDK downloads from `/sync/stream`; this connector uploads to
 * `POST /synchronise`.
 */
/** One local change, as the SDK queues it. */
export interface Entry {
    clientId: number;
    id: string;
    op: string;
    table: string;
    opData?: Record<string, unknown> | undefined;
    previousValues?: Record<string, unknown> | undefined;
}
/** The part of the SDK's database that the connector uses. */
export interface Database {
    getNextCrudTransaction(): Promise<{
        crud: Entry[];
        complete(): Promise<void>;
    } | null>;
    getClientId?(): Promise<string>;
}
/** A change that the server did not accept as it was sent. The next checkpoint replaces the local row by the server's. */
export interface Refusal {
    table: string;
    id: string;
    /** `add`, `update` or `delete`. */
    operation: string;
    /** The server's verdict, such as `rejected` or `kept`; `refused` if the whole request was refused. */
    verdict: string;
    /** The reason, for programs (`code`) and for people (`detail`). */
    code: string;
    detail: string;
    /** The columns that were sent. */
    sent: Record<string, unknown>;
    /** The server's row, if the response has it. */
    stored?: Record<string, unknown>;
    /** The id of the server's conflict, for `GET /conflicts`. */
    conflict?: string;
}
/** The server's refusal of a request that would delete many rows. */
export interface MassDelete {
    table: string;
    deletes: number;
    rows: number;
    detail: string;
}
export interface Options {
    /** The server's address, without a slash at the end. */
    url: string;
    /** Returns a token of the user; null while no user is signed in. */
    token: () => Promise<string | null>;
    /** Tables whose key is not called `id`, and columns of the type `json`, which are text in SQLite. */
    tables?: Record<string, {
        key?: string;
        json?: readonly string[];
    }>;
    /** Is called for each change that the server did not accept. */
    onRefused?: (refusal: Refusal) => void | Promise<void>;
    /** Returns whether the user confirms that many deletions. Without it the deletions are refused, and the rows come back. */
    onMassDelete?: (question: MassDelete) => boolean | Promise<boolean>;
    fetch?: typeof globalThis.fetch;
}
export interface Connector {
    fetchCredentials(): Promise<{
        endpoint: string;
        token: string;
    } | null>;
    uploadData(database: Database): Promise<void>;
}
/** Makes the connector for `connect()`. */
export declare function rollcallConnector(options: Options): Connector;
