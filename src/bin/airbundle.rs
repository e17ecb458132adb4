//! `airbundle`: packs bundles where there is a network.

fn main() -> std::process::ExitCode {
    airbundle::cli::airbundle::main()
}
