/**
 * The backend connector for PowerSync's SDKs: what the SDK downloads comes from `/sync/stream`, what it uploads goes to
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
/** A change that the server did not take as it was sent. The local row becomes the server's with the next checkpoint. */
export interface Refusal {
    table: string;
    id: string;
    /** `add`, `update` or `delete`. */
    operation: string;
    /** The server's verdict, such as `rejected` or `kept`; `refused` where the whole request was. */
    verdict: string;
    /** Why, for programs and for people. */
    code: string;
    detail: string;
    /** What was sent. */
    sent: Record<string, unknown>;
    /** The row that the server has, where it says so. */
    stored?: Record<string, unknown>;
    /** The conflict that the server noted, for `GET /conflicts`. */
    conflict?: string;
}
/** What the server says where a request would delete many rows. */
export interface MassDelete {
    table: string;
    deletes: number;
    rows: number;
    detail: string;
}
export interface Options {
    /** Where the server is, without a slash at the end. */
    url: string;
    /** A token of the user; null while nobody is signed in. */
    token: () => Promise<string | null>;
    /** Tables whose key is not called `id`, and columns whose type is `json`: SQLite has them as text. */
    tables?: Record<string, {
        key?: string;
        json?: readonly string[];
    }>;
    /** Is called for each change that the server did not take. */
    onRefused?: (refusal: Refusal) => void | Promise<void>;
    /** Whether the user means to delete so many rows. Without it they are refused, and come back. */
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
/** Makes the connector to give to `connect()`. */
export declare function rollcallConnector(options: Options): Connector;
