// Parameters of the shaders. Each structure has one of the same name and members in src/device/gpu/params.rs.

struct CeilingParams {
    // Vectors of four words in the buffer.
    count: u32,
    // Steps of one invocation.
    per_invocation: u32,
}

struct SiluMulParams {
    // Values.
    len: u32,
}
