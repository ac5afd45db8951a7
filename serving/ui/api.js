// Calls the service. An error of the service, or of the network, becomes a Failure.

export class Failure extends Error {
  constructor(kind, status, message, retryAfter = null) {
    super(message);
    this.kind = kind;
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

export async function ask(path, body, signal, method = body ? "POST" : "GET") {
  const token = sessionStorage.getItem("token");
  const headers = { "Content-Type": "application/json", ...(token && { Authorization: `Bearer ${token}` }) };
  const options = { method, ...(body && { body: JSON.stringify(body) }) };
  let reply;
  try {
    reply = await fetch(path, { headers, signal, ...options });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Failure("Unreachable", 0, "The service does not answer. Check the network, and whether the service is running.");
  }
  const text = await reply.text();
  let answer;
  try {
    answer = JSON.parse(text);
  } catch {
    throw new Failure("Unreachable", reply.status, `Something other than the service answered, with status ${reply.status}.`);
  }
  if (!reply.ok) {
    const { kind = "Error", message = `status ${reply.status}` } = answer.error ?? {};
    throw new Failure(kind, reply.status, message, Number(reply.headers.get("Retry-After")) || null);
  }
  return answer;
}
