# Finds nvcc, cuBLAS and cuSOLVER, and enables the CUDA language. Sets SPARSEGPT_CUDA_INCLUDE, SPARSEGPT_CUBLAS,
# SPARSEGPT_CUSOLVER, SPARSEGPT_CUDA_LIBRARY_FOLDER and SPARSEGPT_CUDA_RPATH.
#
# nvcc: CMAKE_CUDA_COMPILER, $CUDACXX, the PATH, the usual toolkit folders. The libraries: those of the toolkit, else those
# that scripts/cuda-libraries.mjs has put into build/cuda-libraries, else the system's.

if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  file(GLOB toolkits /usr/local/cuda /usr/local/cuda-* /opt/cuda /usr/lib/cuda)
  list(TRANSFORM toolkits APPEND /bin OUTPUT_VARIABLE toolkit_programs)
  find_program(SPARSEGPT_NVCC nvcc HINTS $ENV{CUDA_HOME}/bin $ENV{CUDA_PATH}/bin PATHS ${toolkit_programs})
  mark_as_advanced(SPARSEGPT_NVCC)
  if(NOT SPARSEGPT_NVCC)
    message(FATAL_ERROR "sparsegpt: nvcc was not found. Install the CUDA toolkit (12.8 or later), or name it: "
      "-DCMAKE_CUDA_COMPILER=/path/to/nvcc")
  endif()
  set(CMAKE_CUDA_COMPILER ${SPARSEGPT_NVCC})
endif()
# The check of the compiler needs some target that it knows.
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 80)
endif()
enable_language(CUDA)

get_filename_component(nvcc_path "${CMAKE_CUDA_COMPILER}" REALPATH)
get_filename_component(toolkit "${nvcc_path}/../.." ABSOLUTE)
if(CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES)
  # nvcc may be a script that lies elsewhere.
  list(GET CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES 0 toolkit_include)
  get_filename_component(toolkit_of_include "${toolkit_include}/.." ABSOLUTE)
endif()
set(SPARSEGPT_CUDA_LIBRARIES "${PROJECT_SOURCE_DIR}/build/cuda-libraries" CACHE PATH
  "Where scripts/cuda-libraries.mjs has put cuBLAS and cuSOLVER")
# The folder is named for the CUDA version.
file(GLOB wheel_folders ${SPARSEGPT_CUDA_LIBRARIES}/nvidia/cu*)

set(folders "")
foreach(root IN ITEMS ${toolkit_of_include} ${toolkit} ${wheel_folders} /usr)
  list(APPEND folders ${root}/lib64 ${root}/lib ${root}/targets/x86_64-linux/lib ${root}/lib/${CMAKE_LIBRARY_ARCHITECTURE})
endforeach()
foreach(library IN ITEMS cublas cusolver)
  string(TOUPPER SPARSEGPT_${library} variable)
  if(NOT ${variable})
    foreach(folder IN LISTS folders)
      # The wheels have no name without a version.
      file(GLOB found ${folder}/lib${library}.so ${folder}/lib${library}.so.*)
      if(found)
        list(GET found 0 first)
        set(${variable} ${first} CACHE FILEPATH "lib${library}" FORCE)
        break()
      endif()
    endforeach()
  endif()
  if(NOT ${variable})
    message(FATAL_ERROR "sparsegpt: lib${library} was not found in the toolkit; node scripts/cuda-libraries.mjs downloads it")
  endif()
endforeach()
get_filename_component(SPARSEGPT_CUDA_LIBRARY_FOLDER "${SPARSEGPT_CUBLAS}" DIRECTORY)
# The static run time comes from the toolkit, so its headers must come first.
set(SPARSEGPT_CUDA_INCLUDE ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
find_path(SPARSEGPT_CUBLAS_INCLUDE cublas_v2.h
  HINTS ${SPARSEGPT_CUDA_LIBRARY_FOLDER}/../include ${SPARSEGPT_CUDA_LIBRARY_FOLDER}/../../../include
  PATHS ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
mark_as_advanced(SPARSEGPT_CUBLAS_INCLUDE SPARSEGPT_CUBLAS SPARSEGPT_CUSOLVER)
if(NOT SPARSEGPT_CUBLAS_INCLUDE)
  message(FATAL_ERROR "sparsegpt: cublas_v2.h was not found; node scripts/cuda-libraries.mjs downloads it")
endif()
list(APPEND SPARSEGPT_CUDA_INCLUDE ${SPARSEGPT_CUBLAS_INCLUDE})
message(STATUS "sparsegpt: CUDA ${CMAKE_CUDA_COMPILER_VERSION}, ${SPARSEGPT_CUBLAS}, ${SPARSEGPT_CUSOLVER}")

# Where cuBLAS and cuSOLVER are looked for at run time, before the system's own places: beside the backend, where they were
# found (by its place in the checkout too, so that this can be moved), and where the toolkit lies by default.
set(SPARSEGPT_CUDA_RPATH "$ORIGIN" ${SPARSEGPT_CUDA_LIBRARY_FOLDER})
foreach(folder IN LISTS wheel_folders)
  file(RELATIVE_PATH relative ${PROJECT_SOURCE_DIR}/build/Release ${folder}/lib)
  list(APPEND SPARSEGPT_CUDA_RPATH "$ORIGIN/${relative}")
endforeach()
list(APPEND SPARSEGPT_CUDA_RPATH /usr/local/cuda/lib64)
list(REMOVE_DUPLICATES SPARSEGPT_CUDA_RPATH)
