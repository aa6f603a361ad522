// Parameters of the shaders. Each structure has one of the same name and members in src/device/gpu/params.rs.

struct SiluMulParams {
    // Values.
    len: u32,
}
