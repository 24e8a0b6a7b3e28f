export class RollcallError extends Error {
    constructor(code, message, problem) {
        super(message);
        this.code = code;
        this.problem = problem;
        this.name = "RollcallError";
    }
    get status() {
        return this.problem?.status;
    }
}
