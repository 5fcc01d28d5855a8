# A shim: CMake is the build (CMakeLists.txt). This lets `node-gyp rebuild`, and with it node-gyp-build and prebuildify,
# run it; the result lies where they look for it, in build/Release (or build/Debug).
{
  'targets': [
    {
      'target_name': 'sparsegpt',
      'type': 'none',
      'actions': [
        {
          'action_name': 'cmake',
          'inputs': ['CMakeLists.txt'],
          # The second one is never made: CMake, not make, decides what is up to date.
          'outputs': ['<(PRODUCT_DIR)/sparsegpt.node', '<(PRODUCT_DIR)/always'],
          'action': ['node', 'scripts/install.mjs', '--build', '--config=<(CONFIGURATION_NAME)'],
        },
      ],
    },
  ],
}
