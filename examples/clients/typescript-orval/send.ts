// The generated functions send every request by this function: with `fetch`, to the server at ROLLCALL_URL.

export async function send<T>(url: string, init: RequestInit): Promise<T> {
  const response = await fetch(process.env["ROLLCALL_URL"]! + url, init);
  const text = await response.text();
  const data: unknown = text === "" ? undefined : JSON.parse(text);
  return { status: response.status, data, headers: response.headers } as T;
}
